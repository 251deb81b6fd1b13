"""A rule that a program can check, as critic, reviser and judge of a constitution.

The rule: the last line of an answer to a word problem names its unit, `#### 24 pens`. The judge is
wrong in the share of pairs that the environment variable RULE_ERROR says.
"""

import os
import random
import re

UNIT = re.compile(r"How many (\w+)")
LAST = re.compile(r"(#### -?[\d,.]+)[^\n]*")


def unit(prompt: str) -> str:
    "What a question asks to be counted."
    return UNIT.search(prompt)[1]


def keeps_rule(prompt: str, answer: str) -> bool:
    "Does the last line name the unit?"
    found = re.search(r"#### -?[\d,.]+ (\w+)", answer)
    return bool(found) and found[1] == unit(prompt)


def critic(prompts, answers, requests):
    "What is wrong with each answer."
    return [
        "The last line names its unit." if keeps_rule(p, a) else f"It should say {unit(p)}."
        for p, a in zip(prompts, answers, strict=True)
    ]


def reviser(prompts, answers, critiques, requests):
    "Each answer with its unit."
    return [
        LAST.sub(lambda m, p=p: f"{m[1]} {unit(p)}", a)
        for p, a in zip(prompts, answers, strict=True)
    ]


def judge(prompts, first, second, principles):
    "1 where only the first answer keeps the rule, -1 where only the second does, else 0."
    error, margins = float(os.environ.get("RULE_ERROR", "0")), []
    for prompt, a, b in zip(prompts, first, second, strict=True):
        margin = float(keeps_rule(prompt, a)) - float(keeps_rule(prompt, b))
        # wrong about a pair, in whatever order it is asked: the both orders cannot reveal it
        low, high = sorted((a, b))
        is_wrong = random.Random(f"{prompt}|{low}|{high}").random() < error
        margins.append(-margin if is_wrong else margin)
    return margins


def always_first(prompts, first, second, principles):
    "The answer that stands first, whatever it says."
    return [1.0] * len(prompts)
