"""A session with a system prompt, through trtstream's own client: pip install 'trtstream[client]'.

The prompt becomes the session's sink tokens, so it stays in sight however long the conversation gets. The engine needs
room for it: trtstream build --max-sink-token-length.

python examples/system_prompt.py [HOST:PORT]
"""

import secrets
import sys

from trtstream.deploy.client.client import Client

SYSTEM = "You are a pirate."
QUESTIONS = ("What is your name?", "Which city is the capital of France?")

with Client(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001") as client:
    session, session_tokens = secrets.token_urlsafe(), 0
    for question in QUESTIONS:
        responses = client.generate(
            text_input=question,
            chat=True,
            stream=True,
            max_tokens=64,
            session_id=session,
            session_tokens=session_tokens,  # what it has seen: if the server lost the session, this is an error
            system=SYSTEM if session_tokens == 0 else None,
        )
        for response in responses:
            print(response.text, end="", flush=True)
        session_tokens = response.session_tokens
        print(f"  ({session_tokens} tokens)")
    client.answer(session_id=session, session_end=True)
