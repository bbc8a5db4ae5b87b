"""Training: a network, an optimizer and epochs of data. It knows neither methods nor plans."""
