"""What the end-to-end tests and the benches share: processes, a raw gRPC client, message types, etcdctl."""
