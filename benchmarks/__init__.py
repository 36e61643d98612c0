"""What the zoo costs and how it compares with the papers. Run from the checkout as
`python -m benchmarks…`; the wheel does not contain it."""
