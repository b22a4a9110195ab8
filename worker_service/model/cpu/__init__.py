"""Native kernels for steps of few tokens on CPU, and how they are built."""
