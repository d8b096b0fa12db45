"""Small changes of the package, each of which a test should notice."""
