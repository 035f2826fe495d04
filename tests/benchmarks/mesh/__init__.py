"""What the mesh promises in numbers, measured on hosts made of network namespaces, with real workers and real gRPC.

Hosts need root on Linux. One module a question; each prints what it found beside what was promised, and writes
tests/benchmarks/results/mesh_*.json.
"""
