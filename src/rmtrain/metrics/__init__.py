"""Rankings, intervals, calibration and benchmark formulas, with numpy only; every room may use them."""
