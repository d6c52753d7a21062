"""Cost of one forward pass: FLOP and bytes (`forward`), latency (`roofline`), prefill."""
