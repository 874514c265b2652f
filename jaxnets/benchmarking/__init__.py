"""How fast is it, beside what the machine allows and beside others, all in one run."""
