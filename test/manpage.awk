# SPDX-License-Identifier: MIT
# Makes the manual page out of what the program says about itself: ./janus --help | awk -v date=2026-11-22 -f test/manpage.awk >janus.1
# Lines: "janus VERSION - SUMMARY"; "  janus COMMAND ARGUMENTS   DESCRIPTION"; "COMMAND, COMMAND:" over "  -o NAME  DESCRIPTION".

function escape(text) {
    gsub(/-/, "\\-", text)
    return text
}

# Options bold, names of values italic, brackets and bars as they are.
function marked(text,    words, count, i, word, head, tail, out) {
    count = split(text, words, " ")
    for (i = 1; i <= count; i++) {
        word = words[i]
        head = tail = ""
        if (word != "...") while (word ~ /^[["]/) { head = head substr(word, 1, 1); word = substr(word, 2) }
        while (word ~ /[]"]$/) { tail = substr(word, length(word)) tail; word = substr(word, 1, length(word) - 1) }
        if (word ~ /^-/) word = "\\fB" escape(word) "\\fR"
        else if (word ~ /^[A-Z]/) word = "\\fI" escape(word) "\\fR"
        out = out (i > 1 ? " " : "") head word tail
    }
    return out
}

function option(text,    gap) {
    gap = match(text, /  +/)
    options = options ".TP\n" marked(substr(text, 1, gap - 1)) "\n" escape(substr(text, gap + RLENGTH)) "\n"
}

function command(text,    name, gap) {
    sub(/^janus /, "", text)
    name = text
    sub(/ .*/, "", name)
    sub(/^[a-z]+ +/, "", text)
    gap = match(text, /   +/)
    commands = commands ".TP\n.B " name "\n" escape(substr(text, gap + RLENGTH)) "\n"
    text = substr(text, 1, gap - 1)
    synopsis = synopsis (synopsis == "" ? "" : ".br\n") "\\fBjanus " name "\\fR [\\fIOPTIONS\\fR] " marked(text) "\n"
}

NR == 1 { version = $2; summary = $0; sub(/^[^-]*- /, "", summary) }
/^  janus / { sub(/^ +/, ""); command($0) }
/^[a-z, ]+:$/ { sub(/:$/, ""); options = options ".SS " $0 "\n" }
/^  -/ { sub(/^ +/, ""); option($0) }
/^[A-Z]/ { notes = 1 }
notes && !/^Exit status/ { words = words escape($0) "\n" }

END {
    print ".\\\" Made by test/manpage.awk from janus --help.   SPDX-License-Identifier: MIT"
    print ".TH JANUS 1 \"" date "\" \"janus " version "\" \"User Commands\""
    print ".SH NAME\njanus \\- " escape(summary)
    print ".SH SYNOPSIS\n.nh\n.ad l\n" synopsis ".ad\n.hy"
    print ".SH DESCRIPTION"
    print "Janus\\-Pro is a model of images and text: it draws a picture from a prompt and answers"
    print "questions about pictures."
    print "The program runs it on the CPU."
    print "Results go to standard output, all else to standard error."
    print "A picture is written under a temporary name and renamed when it is whole."
    print ".SH COMMANDS"
    printf "%s.PP\n%s", commands, words
    printf ".SH OPTIONS\nEach stands under the commands that take it; \\fB\\-\\-\\fR ends them.\n%s", options
    print ".SH ENVIRONMENT\n.TP\n.B JANUS_MODEL\nthe model file, unless \\fB\\-m\\fR names one"
    print ".TP\n.B JANUS_ISA\nthe kernels, unless \\fB\\-\\-isa\\fR names them"
    print ".SH EXIT STATUS\n0 done, 1 failed, 2 used wrongly, 128 + N ended by signal N."
    print ".SH EXAMPLES\n.nf\n.RS"
    print "janus generate \\-m janus\\-pro\\-1b.gguf \\-\\-seed 7 \\-o fox.png \"a red fox in the snow\""
    print "janus ask \\-m janus\\-pro\\-1b.gguf \\-i fox.png \"What is in the picture?\""
    print "janus encode \\-i fox.png | janus decode \\-o again.png"
    print ".RE\n.fi"
}
