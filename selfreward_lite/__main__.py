from selfreward_lite.cli import main

main()
