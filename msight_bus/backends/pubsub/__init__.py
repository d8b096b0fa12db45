"""What Redis, NATS and memory share: publishing and subscribing on a live stream."""
