#!/bin/sh
# Two turns of one session over HTTP: the second sends only what is new, and streams its answer as server-sent events.
#
#   sh examples/curl.sh [HOST:PORT]
set -eu
model="http://${1:-127.0.0.1:8000}/v2/models/trtstream"
session="curl-$(date +%s)-$$"

curl --fail-with-body --silent --show-error "$model/generate" --data @- <<JSON
{"text_input": "Which city is the capital of France?", "chat": true, "max_tokens": 64, "session_id": "$session"}
JSON
echo

curl --fail-with-body --silent --show-error --no-buffer "$model/generate_stream" --data @- <<JSON
{"text_input": "And of Italy?", "chat": true, "max_tokens": 64, "session_id": "$session", "session_end": true, "stream": true}
JSON
