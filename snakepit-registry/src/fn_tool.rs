//! fn_tool
