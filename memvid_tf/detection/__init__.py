"""What SSD needs around its network: anchors, matching, loss."""
