package pagecache

import (
	"errors"

	"understudy.dev/understudy/dead/kernel"
)

// Before 5.11 (commit 36e68442d1af) a kernel keeps no types of its modules, and
// in Debian's generic 5.10 ext4 and jbd2 are modules. What is needed of their
// structures is written down here: as fs/ext4/ext4.h and include/linux/jbd2.h of 5.10 lay
// them out in Debian's configuration, read from the BTF of its cloud flavour, in
// which both are part of the image. The two flavours do not differ in any option
// that these structures depend on; moduletypes_test.go compares all of it with the types
// of the cloud kernel, and the sizes with what the modules of the generic kernel allocate.
//
// Whether the kernel at hand is laid out like that is checked by the sizes of structures of
// the image that depend on the same options, and again when data is read: the
// superblock and the journal must point back (Cache.Ext4).
var moduleTypes = map[string]struct {
	size    int
	members map[string]kernel.Field
}{
	"ext4_sb_info": {1920, map[string]kernel.Field{
		"s_es": {Off: 104, Size: 8}, "s_mount_opt": {Off: 120, Size: 4}, "s_sb": {Off: 536, Size: 8}, "s_journal": {Off: 552, Size: 8},
	}},
	"ext4_inode_info": {1176, map[string]kernel.Field{
		"i_data": {Off: 0, Size: rootSize}, "i_flags": {Off: 80, Size: 8}, "i_disksize": {Off: 232, Size: 8},
		"i_data_sem.count": {Off: 240, Size: 8}, "i_reserved_data_blocks": {Off: 1040, Size: 4},
		"vfs_inode": {Off: 320, Size: 600}, "jinode": {Off: 920, Size: 8},
		"i_crtime.tv_sec": {Off: 936, Size: 8}, "i_crtime.tv_nsec": {Off: 944, Size: 8},
		"i_es_tree.root.rb_node": {Off: 984, Size: 8}, "i_es_lock.raw_lock.cnts.counter": {Off: 1000, Size: 4},
		"i_sync_tid": {Off: 1136, Size: 4}, "i_datasync_tid": {Off: 1140, Size: 4},
	}},
	"extent_status": {40, map[string]kernel.Field{
		"rb_node.rb_right": {Off: 8, Size: 8}, "rb_node.rb_left": {Off: 16, Size: 8},
		"es_lblk": {Off: 24, Size: 4}, "es_len": {Off: 28, Size: 4}, "es_pblk": {Off: 32, Size: 8},
	}},
	"journal_s": {1344, map[string]kernel.Field{
		"j_flags": {Off: 0, Size: 8}, "j_errno": {Off: 8, Size: 4},
		"j_sb_buffer": {Off: 48, Size: 8}, "j_superblock": {Off: 56, Size: 8},
		"j_running_transaction": {Off: 112, Size: 8}, "j_committing_transaction": {Off: 120, Size: 8},
		"j_checkpoint_transactions": {Off: 128, Size: 8},
		"j_head":                    {Off: 824, Size: 8}, "j_tail": {Off: 832, Size: 8}, "j_free": {Off: 840, Size: 8},
		"j_first": {Off: 848, Size: 8}, "j_last": {Off: 856, Size: 8},
		"j_list_lock.rlock.raw_lock.val": {Off: 984, Size: 4},
		"j_fc_first":                     {Off: 864, Size: 8}, "j_fc_off": {Off: 872, Size: 8}, "j_fc_last": {Off: 880, Size: 8},
		"j_dev": {Off: 888, Size: 8}, "j_blocksize": {Off: 896, Size: 4}, "j_blk_offset": {Off: 904, Size: 8},
		"j_fs_dev": {Off: 968, Size: 8}, "j_total_len": {Off: 976, Size: 4}, "j_inode": {Off: 992, Size: 8},
		"j_tail_sequence": {Off: 1000, Size: 4}, "j_transaction_sequence": {Off: 1004, Size: 4},
		"j_commit_sequence": {Off: 1008, Size: 4}, "j_commit_request": {Off: 1012, Size: 4}, "j_uuid": {Off: 1016, Size: 16},
		"j_revoke": {Off: 1104, Size: 8}, "j_revoke_table": {Off: 1112, Size: 16},
		"j_private": {Off: 1304, Size: 8}, "j_csum_seed": {Off: 1320, Size: 4},
	}},
	"transaction_s": {224, map[string]kernel.Field{
		"t_journal": {Off: 0, Size: 8}, "t_tid": {Off: 8, Size: 4}, "t_state": {Off: 12, Size: 4},
		"t_log_start": {Off: 16, Size: 8}, "t_nr_buffers": {Off: 24, Size: 4}, "t_reserved_list": {Off: 32, Size: 8},
		"t_buffers": {Off: 40, Size: 8}, "t_forget": {Off: 48, Size: 8}, "t_checkpoint_list": {Off: 56, Size: 8},
		"t_shadow_list": {Off: 72, Size: 8}, "t_inode_list": {Off: 80, Size: 16},
		"t_updates": {Off: 152, Size: 4}, "t_updates.counter": {Off: 152, Size: 4}, "t_start_time": {Off: 192, Size: 8},
	}},
	"journal_head": {112, map[string]kernel.Field{
		"b_bh": {Off: 0, Size: 8}, "b_jcount": {Off: 12, Size: 4}, "b_jlist": {Off: 16, Size: 4}, "b_modified": {Off: 20, Size: 4},
		"b_frozen_data": {Off: 24, Size: 8}, "b_committed_data": {Off: 32, Size: 8},
		"b_transaction": {Off: 40, Size: 8}, "b_next_transaction": {Off: 48, Size: 8},
		"b_tnext": {Off: 56, Size: 8}, "b_tprev": {Off: 64, Size: 8}, "b_triggers": {Off: 96, Size: 8},
	}},
	"jbd2_inode": {64, map[string]kernel.Field{
		"i_transaction": {Off: 0, Size: 8}, "i_next_transaction": {Off: 8, Size: 8}, "i_list": {Off: 16, Size: 16},
		"i_vfs_inode": {Off: 32, Size: 8}, "i_flags": {Off: 40, Size: 8},
	}},
	"jbd2_revoke_table_s": {16, map[string]kernel.Field{
		"hash_size": {Off: 0, Size: 4}, "hash_table": {Off: 8, Size: 8},
	}},
	"jbd2_revoke_record_s": {32, map[string]kernel.Field{
		"hash": {Off: 0, Size: 16}, "sequence": {Off: 16, Size: 4}, "blocknr": {Off: 24, Size: 8},
	}},
}

// moduleTypesFor has the sizes, in bytes, that structures of the image have in a kernel
// that moduleTypes describes.
var moduleTypesFor = map[string]int{"inode": 600, "super_block": 1408, "mutex": 32, "percpu_counter": 40, "buffer_head": 104}

// moduleLayout returns the layout of a structure of a module that keeps no types,
// or nil.
func moduleLayout(k *kernel.Kernel, name string) *kernel.Layout {
	if _, err := k.Symbol("btf_modules"); !errors.Is(err, kernel.ErrNotFound) || k.Architecture() != "x86_64" {
		return nil // it has them itself, or none are known
	}
	for image, size := range moduleTypesFor {
		if k.Types().Layout(image).Size != size {
			return nil
		}
	}
	t, ok := moduleTypes[name]
	if !ok {
		return nil
	}
	return kernel.GivenLayout(name, t.size, t.members)
}
