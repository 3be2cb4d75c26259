//! The Lua scripts. Redis runs each of them atomically. Their comments document arguments and replies.

use std::sync::LazyLock;

use redis::Script;

macro_rules! scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!(include_str!("lua/lib.lua"), include_str!(concat!("lua/", $file))))
        });)*
    };
}

scripts! {
    AFFINITY = "affinity.lua";
    COMMIT = "commit.lua";
    CREATE = "create.lua";
    DELETE = "delete.lua";
    FOLLOW = "follow.lua";
    GLOBAL_DELETE = "global_delete.lua";
    GLOBAL_GET = "global_get.lua";
    GLOBAL_LIST = "global_list.lua";
    GLOBAL_PUT = "global_put.lua";
    HISTORY = "history.lua";
    LIST = "list.lua";
    LOAD = "load.lua";
    REPAIR = "repair.lua";
    RECLAIM = "reclaim.lua";
    RECOUNT = "recount.lua";
    START = "start.lua";
    STATS = "stats.lua";
}
