"""The replica without the world around it: what decides, given log, time and messages. Pure."""
