"""The YAML behind each command, found by Hydra as ``pkg://pixio_robot.configs``."""
