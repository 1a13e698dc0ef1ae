"`python -m text2grad` is the command `text2grad`"
import sys
from text2grad.cli import main

if __name__=='__main__': sys.exit(main())
