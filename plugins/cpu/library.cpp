// All that an engine's library has, in one piece: the step and its parts instantiate the same templates.
#include "step.cpp"

#include "parts.cpp"
