//! System calls without a safe face elsewhere: the only unsafe code in user space.

pub mod bpf;
pub mod bpf_link;
pub mod netns;
pub mod process;
