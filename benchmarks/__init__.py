"""Compare the bus with the raw protocols, the client libraries and other frameworks."""
