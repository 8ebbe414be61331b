"""TriFinger in PyBullet: the tasks, the arena with its torque path, its cameras, the scripted experts."""
