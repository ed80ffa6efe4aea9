"""VQA accuracy as the official evaluation computes it.

An answer is compared with those of the other nine of ten annotators, three of
whom must agree; before that both are brought into one form: numbers as digits,
no articles, no punctuation, apostrophes where contractions have them. The
words and marks are those of the official evaluation code.
"""

import re
from collections.abc import Sequence

# Found with any one of their apostrophes left out.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd
it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've
somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've
who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_SPELT = {
  word[:index] + word[index + 1 :]: word
  for word in _CONTRACTIONS
  for index, character in enumerate(word)
  if character == "'"
}
_NUMBERS = {"none": "0"} | {
  word: str(number)
  for number, word in enumerate(
    "zero one two three four five six seven eight nine ten".split()
  )
}
_ARTICLES = ("a", "an", "the")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# Agreeing annotators that make an answer right.
_ENOUGH = 3


def normalised(answer: str) -> str:
  """An answer as it is compared."""
  answer = answer.replace("\n", " ").replace("\t", " ").strip()
  text = answer
  in_number = _COMMA_IN_NUMBER.search(answer) is not None
  for mark in _MARKS:
    at_an_end = f"{mark} " in answer or f" {mark}" in answer
    text = text.replace(mark, "" if at_an_end or in_number else " ")
  text = _PERIOD.sub("", text)
  words = (_NUMBERS.get(word, word) for word in text.lower().split())
  return " ".join(
    _SPELT.get(word, word) for word in words if word not in _ARTICLES
  )


def accuracy(answer: str, annotators: Sequence[str]) -> float:
  """The accuracy of one answer, in [0, 1].

  The mean over the annotators of min(1, agreeing others / 3). Where all gave
  the same answer, it is compared as it stands.
  """
  if len(set(annotators)) > 1:
    annotators = [normalised(each) for each in annotators]
    answer = normalised(answer)
  agree = [each == answer for each in annotators]
  scores = [min(1.0, (sum(agree) - own) / _ENOUGH) for own in agree]
  return sum(scores) / len(scores)
