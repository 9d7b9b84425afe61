"""From events to answers: llama.cpp, the dialogue, class prompts, the language process, explaining elsewhere."""
