"""The networks of T-VAU in plain torch: vision tower with taps, AHD, RAE, class-prompt features."""
