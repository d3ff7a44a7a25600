//! The decisions, pure: no I/O, no clock, no randomness, nothing asynchronous; time and dice are
//! arguments. Files in the order of an event's way through them.

pub mod text;

pub mod appetite;

pub mod field;

pub mod event;
mod json;

pub mod update;

pub mod version;

pub mod clock_offset;

pub mod admission;

pub mod request;

pub mod outcome;
pub mod response;

pub mod breaker;
pub mod controls;
pub mod faults;
pub mod fuse;
pub mod gate;
pub mod throttle;
pub mod window;

pub mod group;
pub mod lanes;
pub mod merge;
pub mod row;

pub mod doubt;
pub mod ledger_mark;

pub mod dead_letter;
pub mod history;
pub mod receipts;
pub mod retry;
pub mod verdict;

pub mod letter;

pub mod edit;
pub mod outlook;
pub mod packed;

pub mod settlement;
pub mod turn;
