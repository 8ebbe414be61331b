"""From a checkpoint to a robot: exported programs, their verification, the runtime, the server, latency."""
