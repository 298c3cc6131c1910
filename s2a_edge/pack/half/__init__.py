"""Half precision: which values a graph keeps in float16 or bfloat16, and a float32 twin of it."""
