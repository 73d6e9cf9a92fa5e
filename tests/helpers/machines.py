"""Pinned packages and two GPUs, for machines that tests make up."""

from selfreward_lite.system import doctor
from selfreward_lite.system.gpu import Gpu

GB = 2**30
PINS = doctor.read_pins()
RTX = Gpu("NVIDIA GeForce RTX 4090", "580.1", (8, 9), 23 * GB, 24 * GB)
T4 = Gpu("Tesla T4", "580.1", (7, 5), 15 * GB, 15 * GB)
