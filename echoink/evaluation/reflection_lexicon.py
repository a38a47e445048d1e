"""The words by which `reflection` recognizes doubt, conclusions, and mentions of sound and sight. English only."""

import re

AGAIN = r"consider|think|check|examin|evaluat|assess|count|read|visit|watch|listen|look|analy[sz]|interpret|play"
"""Verbs of looking again."""
CUES = (
    # interjections at the start of a sentence or a clause
    r"(?:^|[.!?…:;)\]\n–—-]\s*|\b(?:but|and|oh|ah|hmm+|no|ok(?:ay)?|well|yet),?\s+)wait\b(?!\s+(?:for|until|on|at|in"
    r"|to|their|his|her|there|here|outside|while|as|with|a minute at))",
    r"\bwait[,:.!?…—-]+\s",
    r"(?:^|[.!?…:;\n–—-]\s*|\b(?:but|oh|no),?\s+)(?:hold|hang) on\b(?!\s+(?:to|tight))",
    r"(?:^|[.!?…:;,\n–—-]\s*)h+m+\b",
    r"\b(?:scratch|strike|scrap) that\b|\btake (?:that|it|this|the [\w ]{1,25}|[A-H]) back\b|\bwithdraw\w*\b"
    r"|\bcorrection:|\bnever ?mind\b|\bspoke too soon\b|\b(?:oh|oops|whoops),",
    r"[.!?…\n–—]\s*(?:no|nope)[,:.!…—-]+\s|[,:–—]\s*no[,:]\s",
    r"\bor (?:rather|is it|was it|could it|might it|am i|maybe not|not)\b|\bor is (?:that|this|he|she)\b",
    # looking again
    rf"\b(?:i|me|let's|us|we|to|and|after|by|on|before|worth|needs?|should|must)\s+(?:\w+ ){{0,2}}(?:re-?|double-?"
    rf"|second-)(?:{AGAIN}|guess)\w*",
    rf"(?:^|[.!?…:;\n–—-]\s*)(?:re-?|double-?)(?:{AGAIN})\w*",
    rf"(?:\b(?:i|me|let's|us|we|to|worth)\s+(?:\w+ ){{0,2}}|(?:^|[.!?…:;,\n–—-]\s*)(?:on )?)(?:{AGAIN}|go|going|went"
    rf"|try|tried)\w*\b"
    rf"[^.?!;]{{0,40}}\b(?:again|once more|a second time|one more time|twice)\b",
    r"\b(?:go|going|went) back (?:over|to|through)\b",
    r"\b(?:up)?on (?:(?:a )?second (?:thought|look|hearing|listen\w*|view\w*)|reflection|(?:a )?(?:closer|further"
    r"|more careful) (?:look|inspection|listening|listen|examination|thought|viewing))\b|\b(?:a )?(?:closer"
    r"|second) look (?:shows|says|suggests|reveals|tells)\b|\b(?:looking|listening) (?:more closely|closer"
    r"|more carefully)\b",
    r"\bcome to think of it\b|\bnow that i (?:think|look|listen|consider)\b|\bthen again\b|\bthinking about it more\b"
    r"|\bsecond thoughts?\b",
    # confessions and corrections
    r"\bi (?:must have |may have |might have |had |have |just )?(?:mis(?:read|heard|counted|judged|took|taken"
    r"|understood|interpreted|identified|seen)|mixed|overlooked|forgot|jumped|confused)\b|\bgot (?:it|that|this"
    r"|them) (?:wrong|backwards|mixed|swapped)\b",
    r"\b(?:i|my)\b[^.?!]{0,30}\b(?:was|were|am|be|been|being)\b (?:\w+ )?(?:too (?:quick|fast|hasty)|wrong|mistaken"
    r"|mixing|premature|hasty|fooled|misled)\b|\bwrong of me\b",
    r"\b(?:can't|cannot|can not|couldn't|isn't|is not|wasn't|may not|might not) (?:\w+ )?(?:be )?(?:right|correct"
    r"|it after all)\b|\bthat(?:'s| is| was) (?:wrong|incorrect|a mistake)\b",
    r"\bmy (?:\w+ )?(?:mistake|error|bad|worry|doubt|concern|hesitation|hunch was)\b",
    r"\b(?:my|the) (?:first|initial|earlier|original|previous) (?:\w+ )?(?:guess|impression|thought|reading|idea"
    r"|answer|instinct|assumption|choice|pick|conclusion|take|inclination)\b",
    r"\b(?:at first|initially|originally|earlier|a moment ago)\b[^.?!]{0,15}\b(?:i|it seemed|it sounded"
    r"|this seemed)\b|\bi (?:had |have )?(?:first|initially|originally|almost|nearly)? ?(?:thought|assumed|believed"
    r"|took it)\b|\bi was (?:going|about|leaning|inclined|tempted|ready)\b|\bi(?:'d| had| would have) (?:said|assumed"
    r"|gone|settled)\b",
    r"\bi (?:now|have to|should|must|need to|will) (?:\w+ )?(?:change|revise|correct|withdraw|reverse|switch|drop"
    r"|abandon)\b|\bi(?:'m| am)? (?:chang|switch|revis|correct)\w* (?:my|to)\b|\bi change(?:d)? my\b|\bi take (?:it"
    r"|this) back\b",
    # uncertainty about one's own conclusion
    r"\b(?:not|n't|less|hardly|far from|no longer|un)\s?(?:\w+ ){0,2}(?:sure|certain|confident|convinced)\b",
    r"\bi (?:still |honestly |really |just |do |start to |begin to |have to )?(?:doubt|wonder|hesitate|worry|question"
    r"|suspect i)\b|\bi (?:honestly |really |just )?(?:don't|do not) know\b|\bjust guess\w*\b"
    r"|\bmakes? me (?:\w+ )?(?:question|doubt|wonder|hesitate|pause|uneasy|think twice|less)\b|\b(?:gives?"
    r"|gave) me (?:\w+ )?pause\b|\bmade me (?:\w+ )?(?:question|doubt|wonder|hesitate|pause|go back|think twice|look"
    r"|listen)\b|\b(?:bothers?|troubles?|worries|puzzles|nags at) me\b",
    r"\bi(?:'m| am)? (?:\w+ )?(?:can't|cannot|can not|could not|couldn't) (?:\w+ )?(?:decide|tell|reconcile|make|say"
    r"|be sure)\b|\bhard (?:for me )?to (?:say|tell|decide)\b|\btorn between\b|\bunclear to me\b",
    r"\bi (?:may|might|could) (?:well )?be\b|\bi(?:'m| am) (?:maybe|perhaps|possibly) \w+ing\b|\bmaybe i(?:'m| am)\b"
    r"|\bundermines?\b|\b(?:conclusion|reading|answer|guess|argument|theory|idea)\b[^.!?]{0,25}\b(?:collapses?"
    r"|withdrawn|shaky|does not hold|doesn't hold|untenable|weak)\b|\bconfidence is (?:low|not|limited)"
    r"|\bunable to (?:say|tell|decide)\b|\btells? (?:another|a different) story\b|\bwon't have it\b|\btricky\b"
    r"|\bnot (?:so |too |entirely |very )?(?:comfortable|happy|at ease)\b|\bcame too (?:fast|early|quickly)\b"
    r"|\b(?:swapped|switched|reversed) (?:them|it|left|the)\b|\bgot swapped\b|\blean one way\b|\btwo minds\b"
    r"|\bjust as good\b|\bbetter to go with\b|\b(?:change|changed|changing) my mind\b",
    r"\b(?:doesn't|does not|don't|didn't) (?:\w+ )?(?:sit right|add up|convince me|square|make sense)\b"
    r"|\bfalls? apart\b|\bcontradicts? (?:what|my)\b|\bfooling myself\b|\bgrain of salt\b",
    r"\btoo (?:soon|hasty|hastily|quickly)\b|\bi should be careful\b|\ba (?:little|bit) (?:fast|quick|hasty)\b",
    r"\b(?:am i|could i|did i|should i|have i|was i|do i)\b[^.!?]*\?",
    r"\b(?:is|was|could|might|would|does) (?:it|that|this) (?:really|truly|actually|also|not|instead|be)\b[^.!?]*\?"
    r"|\bbut (?:is|was|what if|why|does|could)\b[^.!?]*\?|\bwhat if\b[^.!?]*\?",
    r"\bactually,? (?:no\b|let me|wait|that|it|the|this|i)\b|\bi now (?:notice|see|realize|realise|hear|think"
    r"|believe)\b",
)
"""What may be doubt; `reflection` leaves out denied doubt and the doubt of other people."""
DOUBT = re.compile("|".join(f"(?:{cue})" for cue in CUES), re.IGNORECASE)
NEGATED = re.compile(
    r"\b(?:no|not|n't|never|without|nothing|neither|nor|needn't|little|hardly any|free of|beyond)\b[^.!?;,:\n]{0,28}$"
    r"|n't[^.!?;,:\n]{0,28}$",
    re.IGNORECASE,
)
"""Before a cue: the cue is denied."""
QUOTED = re.compile(r"[\"“][^\"”\n]*[\"”]")
"""Speech, or the words of an option: not the writer's own words."""
OF_OTHERS = re.compile(
    r"\b(?:he|she|they|it|who|man|woman|boy|girl|child|people|person|speaker|player|host|guide|teacher|crowd|voice"
    r"|dog|cat|sign|driver|singer|lyrics|worker|customer|passengers?|runner)\b[^.!?;:\n]{0,30}$",
    re.IGNORECASE,
)
"""Before some cues: somebody in the clip waits, hesitates or is not sure."""
CONCLUDES = re.compile(
    r"\b(?:so|hence|therefore|thus|then|answer|choose|chose|pick|select|go(?:ing)? (?:with|for)|must|clearly"
    r"|definitely|certainly|obviously|it(?:'s| is| was)|that(?:'s| is)|this is|these are|giving|gives|makes it"
    r"|points? to|settles?|i(?:'d| would| will|'ll)? (?:say|hear|take|keep|call)|stick|stays?|remains?|final|best"
    r"|leaning|lean|favou?r|is left|sounds? like|looks? like|seems|thought|assumed|aligned|matches|match|fits?"
    r"|confirms?|only|suggests?|indicates?)\b",
    re.IGNORECASE,
)
"""In the reasoning before a free-form answer: something is concluded."""
CONSIDERS = re.compile(
    r"\b(?:could|might|may|possibl[ey]|perhaps|maybe|somewhat|plausible|would (?:mean|be|need|show|have)|if|whether"
    r"|either|between|candidates?|options? (?:are|include)|resembles?|similar|or)\b|\?",
    re.IGNORECASE,
)
"""In a clause: an option is only considered."""
REJECTS = re.compile(
    r"\b(?:not|no|nor|neither|never|without|cannot|out|unlikely|wrong|rul\w+ out|exclud\w+|eliminat\w+|reject\w*"
    r"|dismiss\w*|drop\w*|rather than|instead of|fails?|lacks?|contradict\w*|vague|irrelevant|impossible|far from"
    r"|than)\b|n't\b",
    re.IGNORECASE,
)
"""In a clause: an option is rejected."""
SAID = r"so|hence|therefore|thus|answer|option|pick|choose|lean\w*|settle\w*|conclude\w*|giving|go(?:ing)? with|for"
"""Before a letter: the letter is given as an answer."""
CLAUSE = re.compile(
    r"[.!?;\n…—–]+\s*|,?\s+\b(?:but|however|though|although|while|whereas|yet)\b,?|,\s+(?=(?:not|so|and so)\b)"
)
"""What separates clauses."""
COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an the of on in at to for with and or is are was were be being been it its his her their this that from by"
        " as into some one two someone something man woman people person playing making doing using",
    )
)
"""Common words, which do not distinguish options."""
HEARD = re.compile(
    r"\b(?:audio|audible|audibly|nois(?:e|es|y)|hear|hears|heard|hearing|listen\w*|recording|soundtrack|music\w*"
    r"|melod\w+|tunes?|songs?|sing(?:s|ing|er|ers)?|sung|lyrics|voices?|speaks|speaking|spoken|speaker|speech"
    r"|shout\w*|scream\w*|whisper\w*|humm?ing|laugh\w*|crying|bark(?:s|ing)?|meow\w*|purr\w*|growl\w*|roar\w*|howl\w*"
    r"|chirp\w*|croak\w*|moo(?:s|ing)?|bleat\w*|neigh\w*|crow(?:s|ing)\b|cluck\w*|buzz\w*|hiss\w*|click\w*|clack\w*"
    r"|clang\w*|clank\w*|knock(?:s|ing)|tick(?:s|ing)|beep\w*|ring(?:s|ing)|honk\w*|horn blast|sirens?|whistl\w+"
    r"|applause|cheer(?:s|ing)\b|echo\w*|rhythm\w*|pitch|tones?|tempo|beats?|rumbl\w+|thuds?|squeak\w*|splash\w*"
    r"|sizzl\w+|crackl\w+|chimes?|drumm\w+|strum\w*|loud\w*|quiet\w*|silent|silence|squeal\w*|hum(?:s)?|clatter\w*"
    r"|rattl\w+|gunshots?|screech\w*|ringtone|chord|notes|accent|clap(?:s|ping)|snor\w+|giggl\w+|sob\w*|says|said"
    r"|announce\w*|whine|whining|bang(?:s|ing)|tapping|taps|strings? being|vocal\w*|acoustic\w*|ear|ears)\b"
    r"|\bsound(?:s|ing|ed)?\b(?!\s+(?:plausible|reasonable|right|good|logical|convincing|fair|sensible|odd|reasoning"
    r"|logic|choice|argument|judg\w+|safe|wrong|likely|unlikely|true|fine|obvious|too|more|less|advice|basis|guess"
    r"|answer|strange))",
    re.IGNORECASE,
)
"""Words that mention something heard."""
SEEN = re.compile(
    r"\b(?:image|images|picture|pictures|pictured|photo\w*|pic|frame|frames|scene|visible|visibl[ey]|visual\w*|seen"
    r"|saw|depict\w*|display\w*|watch(?:es|ing)|camera|colou?rs?|colou?red|red|blue|green|yellow|purple|orange|white"
    r"|black|brown|gr[ae]y|pink|background|foreground|wears?|wearing|stands?|standing|sits?|sitting|holds|holding"
    r"|hangs?|carries|perched|helmet|screen|footage|on (?:the|his|her|its|their) (?:left|right)|(?:left"
    r"|right) (?:side|hand|edge|corner|half)|(?:upper|lower|top|bottom) (?:left|right|corner|edge|half|part)|corner"
    r"|shadow\w*|striped?|uniform|dressed|poster|lens)\b|\bsee\b(?!\s+(?:why|how|that this|no reason|if|whether|what"
    r"|nothing|where this|the point|the logic)|\s*[,.:;!?])|\bsees\b|\bseeing\b|\bshow(?:s|n|ing)?\b(?!\s+(?:that|why"
    r"|how)\b)|\blook(?:s|ing)? at\b(?!\s+(?:the|these|all|each|every|my) (?:options?|choices?|question|answers?|list"
    r"|wording|problem|facts))|\blook(?:s|ed)? (?:like (?!a (?:safe|good|reasonable|sensible|clear|trick|safe"
    r"|sound)\b|the (?:right|best|safest|most|obvious|odd|answer|only)\b|it\b|we\b|option\b|[A-H]\b)|wet|dirty|new"
    r"|old|young|tired|happy|angry|wooden|metallic|empty|dark|bright)",
    re.IGNORECASE,
)
"""Words that mention something seen."""
BACK = re.compile(
    r"\b(?:first|initial\w*|earlier|original\w*|previous|assum\w+|thought|believed|ready|about|going|leaning|tempted"
    r"|settled?|said|take|withdraw\w*|changed?|drop|conclu\w+)\b",
    re.IGNORECASE,
)
"""In a cue: its own clause names the earlier view."""
