"""Networks of the zoo, composed of `memvid_tf.layers`."""
