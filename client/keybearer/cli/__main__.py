from keybearer.cli import main

main()
