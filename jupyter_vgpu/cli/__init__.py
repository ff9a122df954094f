"""`jupyter vgpu`: node, status, run, doctor."""
