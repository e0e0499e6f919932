"""Talk to the server with openai-python: a turn names the one before it, and sends only what is new.

python examples/openai_responses.py [URL]

The server is `trtstream serve engine --openai-port 8003`.
"""

import sys

from openai import OpenAI

QUESTIONS = ("Which city is the capital of France?", "And of Italy?")

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8003/v1"
last = None
with OpenAI(base_url=url, api_key="not needed") as client:
    for question in QUESTIONS:
        events = client.responses.create(
            model="trtstream", input=question, previous_response_id=last, max_output_tokens=64, stream=True
        )
        for event in events:
            if event.type == "response.output_text.delta":
                print(event.delta, end="", flush=True)
            elif event.type == "response.completed":
                last = event.response.id
        print()
