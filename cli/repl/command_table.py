"""The list of all commands, in the order of the help."""

from __future__ import annotations

from cg_local.cli.repl import file_commands, model_commands, turn_commands
from cg_local.cli.repl.chat_state import Chat
from cg_local.cli.repl.commands import Command, CommandTable

KEYS = '''\
Enter              sends
Alt-Enter, Ctrl-J  break the line; so does Enter behind \\
Ctrl-C             stops an answer; empties the line
Ctrl-D             leaves
Ctrl-G             opens $VISUAL or $EDITOR
Ctrl-R             searches what was typed
Up, Down           previous and next question
Tab                completes commands and paths
Ctrl-A, Ctrl-E     start and end of the line
Alt-B, Alt-F       a word back, a word forth
Ctrl-K, Ctrl-U     delete to the end, the start
Ctrl-W             deletes a word
Ctrl-L             clears the screen
Ctrl-Z             suspends
"""                begins and ends several lines; so
                   do !multi and !end
/set vi            chooses the keys of vi'''


def show_help(chat: Chat, argument: str) -> None:
    """List the commands, or the keys, or explain one command."""
    if argument.lower() in ("keys", "shortcuts"):
        chat.screen.say(KEYS)
        return
    if argument:
        text = COMMANDS.help_of(argument)
        if text is None:
            chat.screen.error(f"{argument}: no such command; /help lists them")
        else:
            chat.screen.say(text)
        return
    chat.screen.say(COMMANDS.help(chat.screen.columns()))
    chat.screen.note("/help keys lists the keys. Alt-Enter breaks the line, Ctrl-C stops an answer, Ctrl-D leaves.")


COMMANDS = CommandTable(
    (
        Command("/help", "[COMMAND|keys]", "list commands or keys", show_help, ("/?", "/h"), "command"),
        Command("/exit", "", "leave", turn_commands.leave, ("/bye", "/quit", "/q")),
        Command("/clear", "", "begin a new conversation", turn_commands.clear, ("/reset", "/new")),
        Command("/regen", "[TEMPERATURE]", "answer again", turn_commands.regenerate, ("/retry",)),
        Command("/undo", "", "take the last turn back", turn_commands.undo),
        Command("/edit", "", "change the last question", turn_commands.edit),
        Command("/editor", "[TEXT]", "write in $EDITOR (Ctrl-G)", turn_commands.open_editor),
        Command("/read", "FILE[:a-b]", "attach a file to the next question", file_commands.read, ("/add",), "path"),
        Command("/glob", "PATTERN", "attach all files that match", file_commands.glob, (), "path"),
        Command("/drop", "[FILE]", "leave attached files out again", file_commands.drop),
        Command("/system", "TEXT|none", "set or remove the system text", turn_commands.system),
        Command("/set", "NAME VALUE", "change a setting; alone: show all", model_commands.set_value, (), "setting"),
        Command("/show", "[TOPIC]", "the model, settings, messages ...", model_commands.show, (), "topic"),
        Command("/tokens", "[TEXT]", "count the tokens", model_commands.tokens),
        Command("/stats", "", "speed, cache and memory", model_commands.stats),
        Command("/save", "[NAME]", "name the conversation", turn_commands.save_as),
        Command("/load", "[ID|NAME]", "go on with a saved one", turn_commands.load, ("/resume",), "session"),
        Command("/list", "", "list saved conversations", turn_commands.list_sessions, ("/ls",)),
        Command("/copy", "[n]", "copy the answer, or a code block", file_commands.copy),
        Command("/write", "FILE [n]", "write a code block to a file", file_commands.write, (), "path"),
        Command("/model", "[NAME]", "go on with another model", model_commands.model, (), "model"),
        Command("/fill", "FILE:LINE[:COL]", "fill the gap at a place in a file", file_commands.fill, (), "path"),
        Command("/complete", "TEXT", "continue a text, without chat", model_commands.complete),
    )
)
