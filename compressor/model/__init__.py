"""One network, looked at: what it takes, what it holds, what it costs."""
