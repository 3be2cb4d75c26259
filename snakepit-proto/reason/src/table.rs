//! The table itself. [docs/errors.md](https://github.com/snakepit-rs/snakepit/blob/main/docs/errors.md) shows it as a page.

use crate::Code;

/// The part of the system that reports a reason first. Others pass it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// The host, or one of its workers.
    Host,
    /// A client, or a program that embeds a host. No host sends such a reason.
    Client,
    /// The command line.
    CommandLine,
}

/// Defines [`Reason`] and its columns from the rows of the table.
macro_rules! reasons {
    ($(
        $meaning:literal
        $name:ident $text:literal [$($code:ident),+] $http:literal $json_rpc:literal $exit:literal $retry:ident $origin:ident
    )+) => {
        /// The machine-readable reason of an error. Errors with the same reason call for the same reaction.
        ///
        /// A reason never changes its text or its codes. New versions may add reasons.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $(
                #[doc = $meaning]
                #[doc = concat!(" HTTP ", $http, ", JSON-RPC ", $json_rpc, ", exit code ", $exit, ".")]
                $name,
            )+
        }

        impl Reason {
            /// All reasons, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The text on the wire, such as `OVERLOADED`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The meaning, as a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)+ }
            }

            /// The gRPC codes of errors with this reason. Most reasons have one. The others depend on the error, for example on
            /// whether gRPC libraries may retry it.
            #[must_use]
            pub const fn codes(self) -> &'static [Code] {
                match self { $(Self::$name => &[$(Code::$code),+],)+ }
            }

            /// The HTTP status for a service that answers its request with this error. A gateway error (502) means that a worker
            /// or a host behind the service was lost.
            #[must_use]
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$name => $http,)+ }
            }

            /// The code of a JSON-RPC error object, as in MCP: a code of the specification, or -32020 minus the gRPC code.
            #[must_use]
            pub const fn json_rpc_code(self) -> i32 {
                match self { $(Self::$name => $json_rpc,)+ }
            }

            /// The exit code of the command line.
            #[must_use]
            pub const fn exit_code(self) -> u8 {
                match self { $(Self::$name => $exit,)+ }
            }

            /// Whether the same request may succeed later without a change by the caller. A retry is safe only if the request
            /// cannot have run or is idempotent.
            #[must_use]
            pub const fn is_transient(self) -> bool {
                match self { $(Self::$name => reasons!(@ $retry),)+ }
            }

            /// The part of the system that reports the reason first.
            #[must_use]
            pub const fn origin(self) -> Origin {
                match self { $(Self::$name => Origin::$origin,)+ }
            }
        }
    };
    (@ transient) => { true };
    (@ permanent) => { false };
}

// Columns: variant, text, gRPC codes, HTTP status, JSON-RPC code, exit code, transient or permanent, origin.
reasons! {
    "The tool does not exist."
    ToolNotFound "TOOL_NOT_FOUND" [NotFound] 404 -32602 3 permanent Host

    "An argument is missing, unknown or of the wrong type, or another part of the request is invalid."
    InvalidArgument "INVALID_ARGUMENT" [InvalidArgument] 422 -32602 3 permanent Host

    "The tool does not support this kind of call, or the host does not offer this request."
    Unsupported "UNSUPPORTED" [Unimplemented] 501 -32601 3 permanent Host

    "The tool raised an exception."
    ToolFailed "TOOL_FAILED" [Internal] 500 -32033 1 permanent Host

    "The queue is full, or another limit on the load is reached."
    Overloaded "OVERLOADED" [ResourceExhausted] 429 -32028 3 transient Host

    "The deadline passed."
    DeadlineExceeded "DEADLINE_EXCEEDED" [DeadlineExceeded] 504 -32024 3 transient Host

    "The call was cancelled."
    Cancelled "CANCELLED" [Cancelled] 499 -32021 3 permanent Host

    "The worker was lost before the call ended."
    WorkerLost "WORKER_LOST" [Unavailable] 502 -32034 3 transient Host

    "The connection was lost before the call ended."
    ConnectionLost "CONNECTION_LOST" [Unavailable] 502 -32034 4 transient Host

    "No worker can run calls now, or the host cannot be reached."
    NoWorker "NO_WORKER" [Unavailable] 503 -32034 3 transient Host

    "The host is shutting down, or its tokio runtime has ended."
    ShuttingDown "SHUTTING_DOWN" [Unavailable] 503 -32034 3 transient Host

    "The worker is stopping. The call has not begun."
    Stopping "STOPPING" [Unavailable] 503 -32034 3 transient Host

    "A call with a deadline, or a client, was created outside of a tokio runtime."
    NoRuntime "NO_RUNTIME" [FailedPrecondition] 500 -32029 3 permanent Host

    "The call would wait for itself."
    Deadlock "DEADLOCK" [FailedPrecondition] 500 -32029 3 permanent Host

    "A layer or an intermediary rejected the request, or its answer cannot be used."
    Rejected "REJECTED" [FailedPrecondition, Unknown] 502 -32029 3 permanent Host

    "The principal of the request may not do this, or a proxy denied access."
    AccessDenied "ACCESS_DENIED" [PermissionDenied] 403 -32027 3 permanent Host

    "The tool ran, but the host dropped its answer, because the client left too many answers unread."
    AnswerDropped "ANSWER_DROPPED" [ResourceExhausted] 507 -32028 3 permanent Host

    "The requested values, the answer of a tool or a chunk of it are too large for one message."
    AnswerTooLarge "ANSWER_TOO_LARGE" [ResourceExhausted] 507 -32028 3 permanent Host

    "The message or the headers of the request exceed a limit."
    RequestTooLarge "REQUEST_TOO_LARGE" [ResourceExhausted] 413 -32028 3 permanent Host

    "The request arrived too slowly, or broke off."
    RequestIncomplete "REQUEST_INCOMPLETE" [DeadlineExceeded, Cancelled] 408 -32024 3 permanent Host

    "The session does not exist, or has expired."
    SessionNotFound "SESSION_NOT_FOUND" [NotFound] 404 -32025 3 permanent Host

    "The program does not exist."
    ProgramNotFound "PROGRAM_NOT_FOUND" [NotFound] 404 -32025 3 permanent Host

    "The variable does not exist."
    VariableNotFound "VARIABLE_NOT_FOUND" [NotFound] 404 -32025 3 permanent Host

    "The history of the variable does not contain the version."
    VersionNotKept "VERSION_NOT_KEPT" [NotFound] 404 -32025 3 permanent Host

    "A variable with the name exists already."
    VariableExists "VARIABLE_EXISTS" [AlreadyExists] 409 -32026 3 permanent Host

    "The variable is not at the expected version."
    VersionConflict "VERSION_CONFLICT" [Aborted] 409 -32030 3 permanent Host

    "The value does not fit the type of the variable, or is too large."
    InvalidValue "INVALID_VALUE" [InvalidArgument] 422 -32602 3 permanent Host

    "The limit of sessions is reached."
    TooManySessions "TOO_MANY_SESSIONS" [ResourceExhausted] 429 -32028 3 permanent Host

    "The limit of variables in a session is reached."
    TooManyVariables "TOO_MANY_VARIABLES" [ResourceExhausted] 429 -32028 3 permanent Host

    "The limit of watches of a session is reached."
    TooManyWatches "TOO_MANY_WATCHES" [ResourceExhausted] 429 -32028 3 permanent Host

    "The limit of global programs is reached."
    TooManyPrograms "TOO_MANY_PROGRAMS" [ResourceExhausted] 429 -32028 3 permanent Host

    "The session has reached its limit of programs or bytes."
    SessionFull "SESSION_FULL" [ResourceExhausted] 507 -32028 3 permanent Host

    "All sessions together have reached their limit of bytes."
    BackendFull "BACKEND_FULL" [ResourceExhausted] 507 -32028 3 permanent Host

    "The storage of the sessions failed. `INTERNAL` if a write may have been applied."
    BackendFailed "BACKEND_FAILED" [Unavailable, Internal] 503 -32034 3 transient Host

    "Only workers of the host may send this request, or only clients may."
    Reserved "RESERVED" [PermissionDenied] 403 -32027 3 permanent Host

    "A worker has an incompatible version."
    IncompatibleVersion "INCOMPATIBLE_VERSION" [FailedPrecondition] 500 -32029 3 permanent Host

    "A bug in the host or in a worker."
    Internal "INTERNAL" [Internal] 500 -32603 3 permanent Host

    "A proxy answered instead of the host."
    Proxy "PROXY" [Unavailable, Unimplemented, InvalidArgument, Unauthenticated, PermissionDenied] 502 -32034 4 permanent Client

    "The client could not connect to a host."
    NotConnected "NOT_CONNECTED" [Unavailable] 502 -32034 4 transient Client

    "The client was closed."
    ClientClosed "CLIENT_CLOSED" [Unavailable] 503 -32034 3 permanent Client

    "A value does not serialize, or does not fit the requested type."
    InvalidPayload "INVALID_PAYLOAD" [Internal] 500 -32603 3 permanent Client

    "A host in this program did not start."
    NotStarted "NOT_STARTED" [Internal] 500 -32603 5 permanent Client

    "The command line, an environment variable or the configuration file is malformed."
    Usage "USAGE" [InvalidArgument] 400 -32602 2 permanent CommandLine

    "No host answers at the address."
    Unreachable "UNREACHABLE" [Unavailable] 502 -32034 4 transient CommandLine

    "The daemon cannot start."
    CannotStart "CANNOT_START" [Internal] 500 -32603 5 permanent CommandLine

    "The result cannot be written: stdout is closed, or stdout, a file or a disk is full."
    OutputFailed "OUTPUT_FAILED" [Internal] 500 -32603 6 permanent CommandLine
}
