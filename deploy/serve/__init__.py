"""A policy on another machine: messages, server, client."""
