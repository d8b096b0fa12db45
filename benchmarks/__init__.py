"""How fast the bus is: beside the raw protocol, the clients' own ways and the other frameworks."""
