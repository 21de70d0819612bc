package jbd2_test
