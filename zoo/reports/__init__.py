"""Records of measurements, and the tables and the page made of them."""
