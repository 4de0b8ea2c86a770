"""The options with which the engine "rocksdb" opens, reads and writes its database."""

from __future__ import annotations

from typing import Any

from ...settings import RocksdbTable

try:
    import rocksdict
except ImportError as error:  # the one dependency that not every platform has a wheel of
    raise ImportError(f"the engine 'rocksdb' needs the package rocksdict: {error}") from error

__all__ = ["opening", "reading", "rocksdict", "writing"]

SYNC_EVERY = 1 << 20  # bytes: one sync of a whole table would make the log's own syncs wait for it


def opening(table: RocksdbTable) -> Any:
    """The options with which RocksDB is opened."""
    kinds = rocksdict.DBCompressionType
    options = rocksdict.Options(raw_mode=True)
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(rocksdict.Cache(table.cache_size))
    blocks.set_block_size(table.block_size)
    # Index and filter blocks count against the cache: else they alone can outgrow the memory that is allowed.
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
    blocks.set_format_version(5)
    if table.bloom_bits:
        blocks.set_bloom_filter(table.bloom_bits, False)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(table.write_buffer_size)
    options.set_max_write_buffer_number(table.max_write_buffers)
    # Above the first RocksDB asks writers to slow down, at the second it stops them. Both are EngineBusy here.
    options.set_level_zero_file_num_compaction_trigger(table.level0_files)
    options.set_level_zero_slowdown_writes_trigger((table.level0_files + table.level0_stop + 1) // 2)
    options.set_level_zero_stop_writes_trigger(table.level0_stop)
    options.set_target_file_size_base(table.target_file_size)
    options.set_max_bytes_for_level_base(max(4 * table.write_buffer_size, table.target_file_size))
    if table.compaction == "universal":
        options.set_compaction_style(rocksdict.DBCompactionStyle.universal())
    else:
        options.set_level_compaction_dynamic_level_bytes(True)
    options.set_compression_type(getattr(kinds, table.compression)())
    options.set_max_background_jobs(table.max_background_jobs)
    options.set_max_open_files(table.max_open_files)
    options.set_bytes_per_sync(SYNC_EVERY)
    options.set_stats_dump_period_sec(0)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    return options


def writing() -> Any:
    """The options of a write, which is refused where RocksDB would make it wait."""
    options: Any = rocksdict.WriteOptions()
    options.disable_wal = True
    options.no_slowdown = True
    return options


def reading(limit: int, cache: bool = True) -> Any:
    """The options of an iterator that gives up after `limit` removed records (0: never)."""
    options: Any = rocksdict.ReadOptions()
    options.set_max_skippable_internal_keys(limit)
    options.fill_cache(cache)
    return options
