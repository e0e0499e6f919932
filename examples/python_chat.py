"""Chat with an engine in this process, without a server.

python examples/python_chat.py ENGINE
"""

import sys

import trtstream

with trtstream.load(sys.argv[1]) as llm:
    session = llm.session()
    for question in sys.stdin:  # one turn a line, until Ctrl-D
        for piece in session.generate(question.strip(), chat=True, max_tokens=256):
            print(piece, end="", flush=True)
        print()
