"""`jupyter vgpu`: node, status, top, run, doctor."""
