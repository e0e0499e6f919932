from trtstream.cli import main

main()
