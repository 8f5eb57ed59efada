"""Every error that cg-local raises for something a user, a file or a machine can cause.

The tree:

    CgLocalError
    ├── ConfigError          config.json is missing, malformed, or describes another model
    ├── CheckpointError      published weights cannot be read as documented
    ├── ModelFolderError     a quantized model folder is damaged, foreign or of another version
    ├── TokenizerError       tokenizer.model is missing or is not laid out as CodeGemma's
    ├── QuantizeError        a source cannot be quantized, or the destination cannot be written
    ├── PromptError          no prompt can be built from what was given
    ├── SourceFileError      a source file to fill cannot be read, located or written
    ├── SessionError         saved conversations cannot be found, read or written
    │   ├── SessionBusyError    another process holds their database longer than one can wait
    │   ├── SessionDamageError  the file is no database any more, or a broken one
    │   └── RevisionError       another process changed or removed the conversation since it was read
    ├── SettingsError        config.toml, a CG_LOCAL_* variable or a template of the user's is wrong
    ├── CapacityError        the context, the page pool or the memory is too small
    ├── ExportError          weights cannot be written in another project's format
    ├── BackendError         JAX, its devices or a mesh over them are not as needed
    ├── BatchError           a file of requests, or of results, cannot be used
    ├── CorpusError          texts for calibration or evaluation cannot be read, or are too few
    ├── QualityError         models cannot be compared, or a comparison's file cannot be used
    ├── BenchmarkError       a measurement, or a program that it needs, failed
    └── TrainingError        a training run, its data or its checkpoint is unusable

A message says where, what was found, what was needed and what to do. The command line prints it as one line and exits
with status 1. Broken invariants of our own code are assertions, not members of this tree.
"""


class CgLocalError(Exception):
    """Base of all errors below; catch this one to catch them all."""


class ConfigError(CgLocalError):
    """config.json is missing, malformed, or describes a model other than Gemma 1 / CodeGemma."""


class CheckpointError(CgLocalError):
    """Published weights are incomplete, have other names or shapes than the config says, or cannot be read."""


class ModelFolderError(CgLocalError):
    """A quantized model folder is damaged, incomplete, foreign or of another format version."""


class TokenizerError(CgLocalError):
    """tokenizer.model is missing, unreadable, or not laid out as CodeGemma's."""


class QuantizeError(CgLocalError):
    """A source cannot be quantized as asked, or the destination cannot be written."""


class PromptError(CgLocalError):
    """No prompt can be built: nothing to fill, an unknown role, or a text that cannot fit."""


class SourceFileError(CgLocalError):
    """A source file to fill cannot be found, decoded, located at the given cursor, or written back."""


class SessionError(CgLocalError):
    """A saved conversation is not there or not the only one of its name, or the database cannot be read or written."""


class SessionBusyError(SessionError):
    """Another process holds the lock of the database longer than one can wait."""


class SessionDamageError(SessionError):
    """The database of conversations is no database any more, or a broken one."""


class RevisionError(SessionError):
    """Another process changed or removed the conversation since it was read."""


class SettingsError(CgLocalError):
    """config.toml, a CG_LOCAL_* variable or a template of the user's is wrong, or cannot be read or written."""


class CapacityError(CgLocalError):
    """The context window, the page pool or the machine's memory is too small for what was asked."""


class ExportError(CgLocalError):
    """Weights cannot be written in another project's format: a package is missing, or the destination fails."""


class BackendError(CgLocalError):
    """JAX is not installed, or finds fewer devices than needed, or they cannot share the model as asked."""


class BatchError(CgLocalError):
    """A file of requests cannot be read or one of its lines is none, or a file of results cannot be written."""


class CorpusError(CgLocalError):
    """Texts for calibration or evaluation cannot be read, or are too few."""


class QualityError(CgLocalError):
    """Models cannot be compared with each other, or a file of a comparison cannot be read or written."""


class BenchmarkError(CgLocalError):
    """A measurement failed, or a program, package or file that it needs is missing."""


class TrainingError(CgLocalError):
    """A training run, its data or its checkpoint is unusable."""
