"""Load tests with Locust: users for gRPC, HTTP and REST, scenarios, and a report."""
