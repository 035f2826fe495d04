"""Who is there, who runs what, what comes next: planning, prompts, sampling and the generation loop."""
