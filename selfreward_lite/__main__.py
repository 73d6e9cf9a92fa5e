import sys

try:
    from selfreward_lite.cli import main
except KeyboardInterrupt:  # before there is anything to interrupt
    sys.exit(130)

main()
