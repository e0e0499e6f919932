// All that an engine's library has, in one piece: its parts instantiate the same templates.
#include "step.cpp"

#include "chunk.cpp"
#include "parts.cpp"
